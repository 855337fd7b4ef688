"""Tasks: what a model is asked to do on labelled examples, as data, alignment and scores.

Read in this order: examples and reading (files to examples); classify, ner, qa and summarize (one
task a file: its example, the rows that a model reads, and the answers that its outputs mean);
batches; scores. Then freetext and prompts: examples as text, for a model that has learnt no task.
No model is known here: a task's rows go in as ids, and its outputs come back as arrays.

    labels = labels_of(training)
    rows = ClassifiedRows(held_out, tokenizer, labels, length=128)
    batches = HeldOutTaskBatches(rows, batch=8)
    predicted = rows.predictions(batches.outputs(model))    # model(ids, key_mask) -> [B, K]
    print(Classified.scores(held_out, predicted).table())
"""

from minifm.tasks.batches import HeldOutTaskBatches, TaskBatches
from minifm.tasks.classify import Classified, ClassifiedRows
from minifm.tasks.examples import check_labels, describe, labels_of, sides, split, write
from minifm.tasks.freetext import Answered
from minifm.tasks.ner import Tagged, TaggedRows
from minifm.tasks.qa import Question, QuestionRows
from minifm.tasks.reading import read
from minifm.tasks.summarize import Summary, SummaryRows
