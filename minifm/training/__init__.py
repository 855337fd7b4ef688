"""Training: config → lr, optim, objectives → trainer → checkpoint, report, signals, memory."""
