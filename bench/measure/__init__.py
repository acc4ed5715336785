"""What it costs.

Ask it for a probe of one method, step times, rooflines, whether a faster precision may stand in.
It may use train, data, store and plan.
"""
