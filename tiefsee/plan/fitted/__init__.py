"""What software leaves of the peaks, and what measured runs say beyond that: the stored results of the fits.

efficiency.py   few numbers with a physical meaning
neighbours.py   a process over residuals · calibrated.py   both together
"""
