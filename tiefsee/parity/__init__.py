"""Do two devices answer alike? Operator by operator and end to end; see docs/parity.md.

`gate.record` and `gate.compare` are the whole of it; `report` and `tolerances` do without torch.
"""
