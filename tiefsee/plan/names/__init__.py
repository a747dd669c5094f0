"""What the words of a question mean: a model, a number format, a stack, a date by name.

formats.py   what a precision is, on chips that lack it · models.py · stacks.py · dates.py
"""
