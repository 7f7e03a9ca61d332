"""What a user, or another room, may import: a list that changes on purpose only."""

import importlib
import importlib.util
import inspect
import pkgutil

import pytest

import flwr_slfac

PUBLIC = {
    "flwr_slfac": """
        AllDevicesLostError Checkpoint CheckpointError CodecError CutError
        CutPoint DecodeError Device DeviceCodecs DeviceCost DeviceCuts DeviceError
        DivergedError
        EncodeError Halves Lightweight RoundReport SaveBest SettingError
        SlfacError SplitFed StatusPage StopEarly StreamTransport TensorBoard
        Traffic TrainingError VersionError __version__ accuracy client_app cut
        legal_cuts load_checkpoint
    """,
    "flwr_slfac.checkpoint": """
        SECTIONS Checkpoint CheckpointFolder Ledger Resumable Saved Saving Session
        described load_checkpoint modules_of pack random_states read_checkpoint
        register_kind restore_random shapes_of storable unpack write_files
    """,
    "flwr_slfac.codec": """
        SLFAC BFloat16 Codec EasyQuant Feedback Float16 Frame Hints Identity
        Integers Memory PowerQuant RandTopK Role SampleMemory SplitFC Temporal TopK
        Uniform Waterfill as_codec decode encode format_codec parse_codec register
        registered restart
    """,
    "flwr_slfac.codec.slfac": """
        SLFAC
    """,
    "flwr_slfac.codec.temporal": """
        SampleMemory Temporal
    """,
    "flwr_slfac.codec.transforms": """
        Basis SPECTRUM forward_rows inverse_rows order_1d order_2d parse_basis
        plane_transform
    """,
    "flwr_slfac.codec.waterfill": """
        Waterfill
    """,
    "flwr_slfac.cutting": """
        CutPoint Flow Half Halves Trace call_name cut cut_between legal_cuts trace_model
    """,
    "flwr_slfac.lightweight": """
        FULL_BITS Bound DeviceConfig DropMask Lightweight Objective Per
        RunningMeans StepCost Training Unit convergence_bound require_dropout
        step_cost
    """,
    "flwr_slfac.lightweight.activations": """
        SavedBytes saved_in_8_bits without_values
    """,
    "flwr_slfac.lightweight.pruning": """
        ChannelMask Channels CutMask ElementMask FullCutMask FullMask Group Mask
        Member PartialCutMask Role average_coordinates channel_groups
        channel_scores choose_channels choose_elements element_scores
        fill_unheld gradual_share increase keep_pruned_zero prunable_shapes
        restore_unheld shrink update_as_gradient
    """,
    "flwr_slfac.lightweight.pruning.dependency": """
        channel_groups
    """,
    "flwr_slfac.lightweight.quantization": """
        pack_update qsgd_variance quantize quantize_gradients require_sendable
        unpack_update update_variance
    """,
    "flwr_slfac.report": """
        Callback DeviceCost Page Plot RoundReport Table TensorBoard
        bytes_by_direction readable_bytes run_page table_head write_page
    """,
    "flwr_slfac.split": """
        KEPT SCHEMES Batch Begin CutFeature Description Device DeviceCodecs
        DeviceCuts DeviceHalf
        DeviceResult Dropout EvaluateReply EvaluateRequest Fronts Limits Link
        LocalLink LocalResult Loss Lost Metric Moment OnDeviceError
        OptimizerFactory Passage Piece Place RoundResult Rounds SchedulerFactory
        Scheme ServerFronts ServerHalf ServerMemory Smashed Snapshot TrainReply
        TrainRequest WholeFronts accuracy feature_fields feature_of fronts_for
        register_feature require_pipeline_depth require_places seed_for train_locally
    """,
    "flwr_slfac.split.crossing": """
        Batch Decoded Decoder DeviceEnd Encoded ServerEnd ServerSide require_places
    """,
    "flwr_slfac.split.features": """
        CutFeature CutName Dropout Passage Recall ServerMemory Usual feature_fields
        feature_of named passages register_feature require_cut
    """,
    "flwr_slfac.status": """
        DeviceStatus Phase RunStatus Status StatusPage
    """,
    "flwr_slfac.transport": """
        DESCRIBE EVALUATE TRAIN Carrier DescribeRequest Exchange MessageLink
        NodeState RecordState Reply Request Seen answer answer_partition
        as_record exchange_of refusal with_front
    """,
    "flwr_slfac.transport.stream": """
        UNREACHABLE Answer DeviceEnd FallbackLink FlowerOpener
        Opener Opening StreamLink StreamLostError StreamService StreamTransport
        UnreachableError of_content
    """,
    "flwr_slfac.codec.wire": """
        DEFAULT_MAX_ELEMENTS DTYPES MAGIC MAX_DIMS MAX_SECTIONS VERSION Frame
        as_bytes from_bytes pack_frame raw_num_bytes require_sections
        unpack_frame
    """,
    "flwr_slfac.codec.packing": """
        BitReader BitWriter num_bits_for num_packed_bytes pack_codes pack_fields
        pack_positions require_bits unpack_codes unpack_fields unpack_positions
    """,
    "flwr_slfac.codec.kernels": """
        BUCKET_ENDS CHANCE_BITS LEAST_ENERGY LONGEST_LINE LOWER_BOUND NUM_GROUPS
        NUM_KEYS NUM_SYMBOLS SCALE_BITS STEP_UNIT ClassGrid CodingTables Energies
        FrameLoops Grid Kernels PlaneFit PlaneTransform SpectraLoops Stage classes
        digits half_units kernels models plane_weights rans scratch
    """,
    "flwr_slfac.codec.layout": """
        PlaneShape channel_dim from_rows num_samples spectrum_dims to_rows
        within_channel_dims within_column_dims
    """,
}


@pytest.mark.parametrize("module", PUBLIC)
def test_a_door_exports_what_is_listed(module: str) -> None:
    """Every name in `__all__` is listed here, is there, and has a docstring."""
    door = importlib.import_module(module)
    assert door.__doc__
    assert sorted(door.__all__) == sorted(PUBLIC[module].split())
    for name in door.__all__:
        thing = getattr(door, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), name


def test_every_subpackage_is_a_door() -> None:
    """No package of ours is without a list."""
    found = pkgutil.walk_packages(flwr_slfac.__path__, "flwr_slfac.")
    assert {m.name for m in found if m.ispkg} <= PUBLIC.keys()


def test_no_module_hides_behind_a_public_name() -> None:
    """`import flwr_slfac.NAME` never gives something else than the name exports."""
    for name in flwr_slfac.__all__:
        assert importlib.util.find_spec(f"flwr_slfac.{name}") is None, name


def test_names_of_the_design_are_public() -> None:
    """The names that users were promised can be imported."""
    promised = {
        "flwr_slfac": "cut Device client_app SplitFed legal_cuts Lightweight",
        "flwr_slfac.codec": "SLFAC Waterfill Identity encode decode",
        "flwr_slfac.lightweight": "Lightweight convergence_bound Objective Training",
        "flwr_slfac.split": "train_locally Device ServerHalf accuracy",
    }
    for module, names in promised.items():
        assert set(names.split()) <= set(importlib.import_module(module).__all__)
