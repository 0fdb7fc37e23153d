"""Teachers of self-training, and what their students start from."""

from encodecmae_sb.lobes import AudioEncoder, CodecLatents, LogMel
from encodecmae_sb.nnet.chunks import check_layer
from encodecmae_sb.nnet.front_ends import check_grid
from encodecmae_sb.pretrained.describe import describe
from encodecmae_sb.pretrained.published import load_encoder_source
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.grid import HOP, SAMPLE_RATE

STUDENTS = ("auto", "teacher", "fresh")


def load_teacher(source, layer):
    """The encoder whose activations are clustered.

    Arguments
    ---------
    source : str or Path
        A folder that a recipe exported, or the name of published weights.
    layer : int or str
        `"last_no_norm"` in the paper; see `encode_in_chunks`.

    Returns
    -------
    AudioEncoder
        In eval mode.

    Raises
    ------
    FileNotFoundError
        If there is no such encoder.
    UserError
        If it cannot be used, or has no such layer.
    """
    try:
        teacher = load_encoder_source(source)
    except (UserError, FileNotFoundError):
        raise
    except Exception as error:  # whatever building from a broken yaml raises
        raise UserError(
            f"teacher={source} cannot be built from its hyperparams.yaml: {error}. "
            "Give an encoder folder that a recipe exported."
        ) from error
    if not isinstance(teacher, AudioEncoder):
        raise UserError(
            f"teacher={source} holds a {type(teacher).__name__}, not an encoder. Give "
            "an encoder folder such as OUTPUT_FOLDER/encoder of recipes/pretrain.py."
        )
    check_layer(teacher, layer)
    if layer == "all":
        raise UserError("layer=all: clusters are of one layer. last_no_norm is usual.")
    return teacher.eval()


def start_student(encoder, teacher, student):
    """Gives the student the teacher's weights, if that is asked for.

    Arguments
    ---------
    encoder : AudioEncoder
        The student's, changed in place.
    teacher : AudioEncoder
    student : str
        "teacher": the student starts with the teacher's weights and log-mel front end;
        "fresh": it keeps its own new weights; "auto": as "teacher" if both are built
        alike, the front end included, otherwise as "fresh".

    Returns
    -------
    bool
        Whether the student starts with the teacher's weights.

    Raises
    ------
    UserError
        If the teacher's weights are asked for and do not fit, or if the student's
        frames are not as long as targets.
    """
    if student not in STUDENTS:
        raise UserError(f"student={student!r}: allowed are {', '.join(STUDENTS)}.")
    if isinstance(encoder.front_end, CodecLatents):
        if not isinstance(teacher.front_end, CodecLatents):
            raise UserError(
                "The student's input is the latents of a codec, and its teacher has no "
                "codec to take over. Give the student log-mel input."
            )
        given, kept = encoder.front_end.normalise, teacher.front_end.normalise
        if given != kept:
            raise UserError(
                f"The student takes over its teacher's codec, with normalise={kept}, "
                f"and was given normalise={given}. Give it the teacher's."
            )
        encoder.front_end = teacher.front_end
    elif student == "teacher" and _both_log_mel(encoder, teacher):
        encoder.front_end = teacher.front_end  # which has no weights
    check_grid(encoder.front_end, SAMPLE_RATE, SAMPLE_RATE, HOP, exact=False)
    same = describe(encoder) == describe(teacher)
    if student == "teacher" and not same:
        raise UserError(
            "student=teacher, but the student is not built like its teacher:\n"
            f"{describe(encoder)}\ninstead of\n{describe(teacher)}\n"
            "Give the teacher's sizes, or --student fresh."
        )
    if same and student != "fresh":
        encoder.load_state_dict(teacher.state_dict())
        return True
    return False


def _both_log_mel(encoder, teacher):
    front_ends = encoder.front_end, teacher.front_end
    return (
        all(isinstance(front_end, LogMel) for front_end in front_ends)
        and front_ends[0].dim == front_ends[1].dim
        and front_ends[0].normalise == front_ends[1].normalise
    )


def describe_student(encoder, teacher, continued):
    """What the student starts from, and whose frames its targets are, as text."""
    hop, teachers_hop = (x.front_end.hop_length for x in (encoder, teacher))
    if continued:
        return (
            "The student goes on from the teacher's weights, with its front end "
            f"({hop} samples from frame to frame) and a new decoder and head."
        )
    text = "The student has new weights."
    if hop != teachers_hop:
        text += (
            f" It has {hop} samples from frame to frame, the teacher {teachers_hop}: "
            "its targets are those of the teacher's nearest frames. With --student "
            "teacher it goes on from the teacher, with its front end, if all else is "
            "alike."
        )
    return text
