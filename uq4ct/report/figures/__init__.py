"""Figures of the report, a file per question: each gives panels to look at and the numbers that they show."""
