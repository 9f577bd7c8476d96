"""The toy world that minFlamingo trains on. README.md in this folder describes it."""
