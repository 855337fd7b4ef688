"""How well a CLIP tells which text belongs to which picture (Radford et al. 2021, section 3.1):

    retrieval   of the captions of a batch, is the one nearest to a picture its own? And of the
                pictures, is the one nearest to a caption its own? Where several have the same
                caption, each of them is right
    zero_shot   of prompts that name each class, is the one nearest to a picture that of its class?
                The model has never learnt the classes
"""

import numpy as np

from minifm.errors import ConfigError
from minifm.models.clip import same_texts, unit
from minifm.tensor import Tensor, no_grad
from minifm.text.captions import caption_rows

NAMED = "{}"            # where a class is named in a prompt
AT_ONCE = 256           # rows that a tower is asked for


def embedded(tower, rows):
    """float32 [N, E], unit vectors, of ids [N, T] or pictures [N, C, S, S], by the tower of a CLIP
    that reads such."""
    with no_grad():
        found = []
        for start in range(0, len(rows), AT_ONCE):
            part = rows[start : start + AT_ONCE]
            part = Tensor(part) if part.dtype.kind == "f" else part
            found.append(unit(tower.embed(part)).numpy())
    return np.concatenate(found)


def retrieval(model, batches):
    """{"text_of_picture": fraction, "picture_of_text": …} over batches of (ids [B, T],
    pictures [B, C, S, S])."""
    right = {"text_of_picture": [], "picture_of_text": []}
    for ids, pictures in batches:
        texts, seen = embedded(model.text, ids), embedded(model.image, pictures)
        near, same = seen @ texts.T, same_texts(ids)                    # [pictures, texts]
        rows = np.arange(len(ids))
        right["text_of_picture"].append(same[rows, near.argmax(1)])
        right["picture_of_text"].append(same[rows, near.argmax(0)])
    return {name: float(np.concatenate(found).mean()) for name, found in right.items()}


def class_vectors(model, tokenizer, classes, prompts):
    """float32 [K, E]: of each class the mean of its prompts' unit vectors, made a unit vector again
    (section 3.1.4)."""
    texts = [prompt.replace(NAMED, name) for name in classes for prompt in prompts]
    ids, _ = caption_rows(tokenizer, texts, most=model.config.text.context)
    each = embedded(model.text, ids).reshape(len(classes), len(prompts), -1)
    return unit(Tensor(each.mean(1))).numpy()


def classified(model, tokenizer, pictures, classes, prompts):
    """int [N]: the class, a place in `classes`, whose prompts are nearest to each of the pictures
    [N, C, S, S]."""
    vectors = class_vectors(model, tokenizer, classes, prompts)
    return (embedded(model.image, pictures) @ vectors.T).argmax(1)


def check_prompts(prompts):
    """Raise ConfigError for a prompt that does not say where a class is named."""
    for prompt in prompts:
        if NAMED not in prompt:
            raise ConfigError(f"prompts: expected {NAMED} where the class is named, got {prompt!r}")
