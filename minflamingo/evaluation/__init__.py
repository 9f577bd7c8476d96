"""Evaluation: the few-shot protocol and its metrics (paper §3 and appendix). In reading order:

    task        what a few-shot task is: examples, a template, a metric
    fewshot     the prompt to the letter, and an answer to it, open or close-ended
    eye         the frozen eye looks at each item once
    rices       shots that are like the query
    runner      a model sits a benchmark: shots are chosen, answers collected, marked
    metrics     CIDEr, VQA accuracy, top-1, ROC AUC, NDCG, with intervals
    benchmarks  COCO, VQAv2 and the others, on disk in their official formats
    cells, command, figure      python -m minflamingo eval: stops and goes on, a table, a figure
    finetune    one task learned by gradients, eye included; augmentation, schedules
    grid, finetune_command      python -m minflamingo finetune: the grid search, in jobs that are kept
    looking     what a token looks at
"""
