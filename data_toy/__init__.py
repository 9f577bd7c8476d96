"""The toy world that minFlamingo learns in: see README.md in this folder."""
