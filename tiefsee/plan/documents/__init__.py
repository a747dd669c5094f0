"""What was found about serving as a document: plans in words, fleets side by side, what an answer turns on.

serving.py     the answer of a search · mixed.py   of mixed pools · describe.py   plans in words and as data
fleets.py      fleets, break-even prices · fleet_views.py   their charts and tables
swings.py      what a plan turns on · sensitivity.py   inputs moved to their ends, one at a time · roofline.py
"""
