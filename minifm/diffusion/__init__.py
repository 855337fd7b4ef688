"""Diffusion: the mathematics of noising and denoising, for arrays of any shape and any network.

In reading order: schedule (how much noise when) → process (from data to noise) → objectives (what
a network learns) → levels (which noise levels to visit) → samplers (from noise to data) → guidance
(towards what one wants) → scheduler (all of it in one configuration, as files have it); and learned
(a schedule that is trained with the network). Of tokens in place of numbers: absorbing.
"""
