"""Sections of a report about probes whose answers have rows: what was asked, a table, and maps as pictures."""

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from . import page
from .results import number

SHUFFLED = "_shuffled"


def rows_of_answer(answer: Mapping[str, Any], note: str) -> str:
    """A note and a table with a column for each of the answer's rows, and one for each of their controls."""
    columns: dict[str, dict[str, float | None]] = {}
    for row, numbers in answer["rows"].items():
        for key, value in numbers.items():
            control = key.endswith(SHUFFLED)
            column = columns.setdefault(f"{row}, shuffled" if control else row, {})
            column[key.removesuffix(SHUFFLED)] = value
    keys = dict.fromkeys(key for column in columns.values() for key in column)
    rows = [[key, *(number(column.get(key)) for column in columns.values())] for key in keys]
    table = page.table(["", *columns], rows)
    which = page.paragraph(f"{escape(answer['kind'])} ({answer['id']})", "note")
    return f'<div class="probe">{page.paragraph(escape(note), "note")}{table}{which}</div>'


def labelled(answer: Mapping[str, Any]) -> str:
    train, test = answer["train"], answer["test"]
    return (
        f"Labelled images of {answer['labels']['kind']} ({answer['labels_id']}), {answer['classes']} classes: "
        f"{train['n']} for training ({train['id']}) and {test['n']} held out ({test['id']}). Always answering the "
        f"class that is commonest in training has an accuracy of {answer['majority']:.4f}."
    )


def _knn(answer: Mapping[str, Any]) -> str:
    note = (
        f"{labelled(answer)} Latents are averaged over positions, neighbours found by cosine, and votes weighted by "
        f"softmax(cosine / {answer['settings']['temperature']:g}). knn: held-out images among N for training. "
        "self_knn: each of all N images among the others."
    )
    return rows_of_answer(answer, note)


def _linear_probe(answer: Mapping[str, Any]) -> str:
    settings, sgd = answer["settings"], answer["sgd"]
    note = (
        f"{labelled(answer)} A linear classifier of standardised means over positions, by ridge regression (penalty "
        f"{settings['penalty']:g}) or gradient descent ({sgd['epochs']} epochs, batches of {sgd['batch']}, rate "
        f"{settings['rate']:g} falling as a cosine)."
    )
    return rows_of_answer(answer, note)


def _similarity(answer: Mapping[str, Any]) -> str:
    note = (
        f"Latents against {answer['teacher_name']} ({answer['teacher_spec_id']}), both averaged over positions, on "
        f"{_images(answer)}. Linear CKA; CKNNA and mutual k-NN look at the {answer['settings']['k']} nearest by "
        "cosine. Shuffled: against the teacher's features of other images."
    )
    return rows_of_answer(answer, note)


def _retrieval(answer: Mapping[str, Any]) -> str:
    note = (
        f"Tokens of {answer['teacher_name']} ({answer['teacher_spec_id']}) predicted from latents, on "
        f"{_images(answer)}. r@k: how often an image's own tokens are among the k of the highest cosine, averaged over "
        "the image (meanpool) or side by side (flatten); shuffled: tokens belong to other images, as by chance. A high "
        "r@1 may go with a low cosine: cos_mean_token is that of always answering the mean token."
    )
    for pooling, reason in answer.get("left_out", {}).items():
        note += f" Without {pooling}: {reason}."
    return rows_of_answer(answer, note)


def _self_similarity(answer: Mapping[str, Any]) -> str:
    settings = answer["settings"]
    note = (
        f"Means over {_images(answer)} of cosines between the tokens of an image. lds: direct neighbours less pairs "
        f"at least {settings['far']} tokens apart; cds: fall of the cosine a token of distance, up to "
        f"{settings['decay']}; rmsc: spread of directions. Larger is more spatial structure, which iREPA found to "
        "predict how well generators learn from a teacher. selfsim_err: mean difference between both's cosines, 0 "
        "where maps are alike."
    )
    return rows_of_answer(answer, note)


def _pca_maps(answer: Mapping[str, Any]) -> str:
    fitted = "each image by itself" if answer["settings"]["fitted_on"] == "image" else "all images shown here"
    note = (
        f"Three principal components as red, green and blue, fitted on {fitted}. pca3_variance is the share of the "
        "variance over all their positions that three components hold."
    )
    figures = "".join(_strip(image) for image in answer["images"])
    return rows_of_answer(answer, note) + f'<div class="strips">{figures}</div>'


def _strip(image: Mapping[str, Any]) -> str:
    name, shape = escape(image["name"], quote=True), f"aspect-ratio: {image['width']} / {image['height']}"
    cells = [f'<div><img src="{image["image"]}" alt="{name}" style="{shape}"><span>image</span></div>']
    for subject, uri in image["maps"].items():
        label = escape(subject, quote=True)
        picture = f'<img class="latent" src="{uri}" alt="Components of {label} of {name}" style="{shape}">'
        cells.append(f"<div>{picture}<span>{label}</span></div>")
    return f"<figure><figcaption>{name}</figcaption><div>{''.join(cells)}</div></figure>"


def _images(answer: Mapping[str, Any]) -> str:
    tile = answer["settings"].get("tile")
    what = "images" if tile is None else f"tiles of {tile} pixels"
    return f"{answer['set']['n']} {what} ({answer['set']['id']})"


SECTIONS: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "probe/knn": ("Nearest neighbours", _knn),
    "probe/linear_probe": ("Linear probe", _linear_probe),
    "probe/similarity": ("Likeness to a teacher", _similarity),
    "probe/retrieval": ("Retrieval by predicted tokens", _retrieval),
    "probe/self_similarity": ("Spatial self-similarity", _self_similarity),
    "probe/pca_maps": ("Maps of principal components", _pca_maps),
}
"""Title and section of each kind."""
