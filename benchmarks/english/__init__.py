"""A small English Llama made from open text: a causal model with real, if modest, pre-trained weights for the study.

    texts.py        the corpus: which files, which documents; what is left out, and why
    questions.py    multiple-choice questions cut from the same text, in the wording of `uq4ct.prompts.plain`
    tokens.py       the tokenizer, and text and questions as two long rows of tokens with what each one is
    pretraining.py  the model, and its training for a stated number of minutes

`python -m benchmarks.english prepare` needs no GPU, `train` wants one.
"""
