"""How long the operators and collectives of one step take, before anything waits.

terms.py         a step as ideal seconds of operators and transfers, and seconds under efficiencies
collectives.py   which bytes ranks exchange, over which link
"""
