"""What sizes and budgets cost and gain.

Before a run that no machine here can hold, in reading order: devices → memory → plan.
From many small runs to a law that says how to spend a large budget: law → grid → study → isoflop
→ spend → figure.
"""
