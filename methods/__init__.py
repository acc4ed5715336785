"""Distillation methods: one file a method; see `methods.base` for the contract and `methods.registry` for how they are found."""
