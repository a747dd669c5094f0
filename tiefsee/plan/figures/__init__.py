"""What an answer is made of: figures with their ranges and grades, and money.

estimate.py     a figure, its 80 % range and grade
prediction.py   figures by unit, parts, sources
money.py        prices, and those that break even
"""
