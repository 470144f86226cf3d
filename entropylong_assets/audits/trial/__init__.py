"""The training trial: does training on a dataset's samples make a better model than its rivals?

    prepare.py ─► folder of token arrays (folder.py) ─► runs.py: training.py, evaluation.py
                                                          └─► results.jsonl ─► measures.py, page.py

`folder`, `network`, `training`, `evaluation`, `natural_text` and `runs` need only numpy, torch and
transformers, so that the machine that trains needs nothing else of this package's dependencies:

    python -m entropylong_assets.audits.trial.runs PLAN.json --out RESULTS
"""
