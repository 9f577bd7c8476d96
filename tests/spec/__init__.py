"""The specification of the core, one file per component. It tests the plain code only, and is what students are graded with."""
