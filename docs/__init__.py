"""The tour: `python -m docs.tour` runs it and writes docs/tour.md."""
