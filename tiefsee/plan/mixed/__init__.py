"""Several unlike pools as one service.

service.py   the question and what is found · mixer.py   ways to serve as columns · linear.py   the linear program
"""
