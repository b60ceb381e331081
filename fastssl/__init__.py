"""fastssl: visual features without labels, from synthetic imagery, at the speed of the hardware."""

__version__ = "0.1.0"
