"""The campaigns behind docs/comparison.md and docs/study.md, and every table of these pages from their results."""
