"""What was measured or published: figures and runs, and what each row of them says.

points.py      published figures · points_file.py   their files
measured.py    measured runs · campaigns.py, resolve.py   what their table leaves out
measure_chip.py   this machine's CPU
"""
