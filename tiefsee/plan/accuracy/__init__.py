"""How well the planner predicts what it was not fitted on, against a roofline.

cases.py      rows as questions · score.py   errors, bias, coverage · naive.py   the baseline
validate.py   families left out · check.py   all of it · goals.py, report.py   aims, tables and pages
"""
