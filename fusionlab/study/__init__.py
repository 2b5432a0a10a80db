"""The study of a team: what its answers, weights and costs say, each analysis a function over plain frames.

`measure` picks cells and compares them; `tables`, `weights`, `robustness`, `trajectories`, `interference`, `costs` and
`claims` are the analyses, `figures` draws them, `report` writes them; `plan` says what is answered, `shipped` where the
answers of the full study lie. Only `probe` needs a loaded team; nothing else here needs torch.
"""
