"""Ways to learn to make pictures, beside each other: contestants (what learns, and how each makes
pictures of a class) → study (the same data, size and operations for all; what is measured)."""
