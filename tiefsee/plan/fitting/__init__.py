"""How what is fitted comes out of the evidence, whole and with families left out.

samples.py     rows as functions of the efficiencies · fit.py   the fit · tune.py   the kernels of neighbours
calibrate.py   makes the data files anew · refit.py   without some families · training.py   the same of training
"""
