"""Assignments for a course: starter code, a grader, and wrong solutions that must lose points."""
