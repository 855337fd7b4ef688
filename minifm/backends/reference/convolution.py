"""Convolution, pooling and upsampling of images [B, C, H, W]."""


class Convolution:
    pass
