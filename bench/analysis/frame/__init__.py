"""What every analysis shares: the contract, the registry, the stored results, the networks and data it is given, the commands."""
