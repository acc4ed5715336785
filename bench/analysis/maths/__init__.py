"""The analyses' formulas as pure functions on tensors, each with its source."""
