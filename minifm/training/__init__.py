"""Training, in reading order: config → lr, optim, objectives → trainer → checkpoint, report; beside
them signals and memory. pretrain puts a whole run together.
"""
