"""Evaluation: the few-shot protocol and its metrics (paper section 3.1 and appendix). In reading order:

    task, fewshot      what a task is; its prompt, and the model's answer to a prompt
    features, rices    features of the frozen vision encoder, computed once; shots that are similar to the query
    runner, metrics    evaluate a model on a task
    benchmarks         COCO, VQAv2 and others, read from disk in their official formats
    attention_maps     which patches a token attends to
"""
