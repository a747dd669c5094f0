"""What training a model of the family would take: layouts, step time, memory, failures, money; RL as well.

layout.py      TP, DP, EP, PP, CP, ZeRO, schedule · job.py what is trained, on what
units.py       ideal seconds of a layer · times.py with efficiencies · exchange.py collectives · activations.py
stages.py      which layers a stage holds · parameters.py · memory.py · optimizer.py
schedule.py    1F1B, interleaved, zero-bubble, DualPipe -> 1F, 1B, 1W, 1F1B, bubble
step.py        all of it: one step · where.py what it is spent on · failures.py goodput
search.py      the best legal layout · plan.py the answer · scaling.py · rl.py · predict.py · report.py
efficiency.py  what is left of the peaks, as plan/fitting/training.py fits it on published runs
"""
