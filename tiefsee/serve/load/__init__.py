"""A load generator for any server that speaks OpenAI's Chat Completions or Completions.

    plan.py      which requests, and when: lengths.py, arrivals.py, prompts.py, trace.py
    run.py       sends them on time (client.py), watches itself (health.py)
    summary.py   records -> percentiles, throughput, goodput
    report.py    a table; JSON; plot.py a picture; compare.py two files

No torch anywhere: it runs on a machine that has none. Definitions are those of docs/bench.md.
"""
