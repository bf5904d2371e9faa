"""What a phase of clients that send scalars reveals of one example: where noise hides it at all."""

from zo_fl.engine.errors import FieldError
from zo_fl.engine.phase import Problem, Release
from zo_fl.wrap import privacy
from zo_fl.zo.probing import Probing


def release(fields: Probing, problem: Problem) -> Release | None:
    """Returns what a phase of such clients reveals of one example.

    Raises:
      FieldError: noise without a bound, or where an example moves the losses of others.
    """
    if not fields.noise:
        return None
    if problem.task.has_statistics and fields.bn_policy != "frozen":
        raise FieldError(
            "bn_policy",
            f"={fields.bn_policy!r}: statistics of a batch reveal what no noise hides; allowed "
            "with noise: frozen",
        )
    if fields.loss != "ce":
        raise FieldError("loss", f"={fields.loss!r} depends on all labels; allowed with noise: ce")
    examples, steps = problem.clients.client_indices.shape[1], fields.local_steps
    batches_an_epoch = -(-examples // (fields.batch_size or -(-examples // steps)))
    return privacy.release(fields.privacy, times=-(-steps // batches_an_epoch))
