"""Every primitive that JAX has is in the table of rules, or in a list with its reason."""

import json
import subprocess
import sys

REASONS = {
  'it reads or writes references, and the analysis follows values only': """
    accum_grad_in_ref addupdate box_get box_set create_linear empty empty2 empty_ref free_ref freeze
    get log_extend log_read new_box new_log new_ref run_state swap""",
  'it orders or checks, and computes nothing': """
    after_all check create_token dce_sink pin shape_assertion stage tie unpin unreachable""",
  'it hands whole arrays to code that JAX does not see': """
    call_exported cudnn_fusion custom_partitioning debug_callback debug_print ffi_call
    inspect_sharding io_callback pure_callback""",
  'it overlaps a collective with other work, or belongs to kernels': """
    all_gather_done all_gather_reduced_start all_gather_start all_to_all_done all_to_all_start
    core_map pbroadcast pbroadcast_done pbroadcast_dynamic pbroadcast_start ppermute_done
    ppermute_start precv psend psum_done ragged_all_to_all psum_invariant_start psum_start reduce_scatter_done
    reduce_scatter_start unreduced_psum_start unreduced_reduce_scatter_start""",
  'its types say that sums over devices are still to be taken': """
    all_gather_reduced preduced reduced_vary_cast reduced_vary_cast_p unreduced_pmax unreduced_pmin
    unreduced_psum unreduced_reduce_scatter vary_unreduced_cast vary_unreduced_cast_p""",
  'JAX makes it of others when it differentiates, batches or lowers': """
    broadcast_to custom_jvp_call_jaxpr custom_lin
    dimension_size eval_jaxpr from_edtype geqp3 geqrf iota_2x32_shape ormqr
    remat_opt to_edtype zeros_like""",
  'experimental in JAX 0.10; in 0.12, where jax.numpy emits it, it has a rule': 'call_hi_primitive',
  'it is a part of a linearized call': 'call_hi_primitive_linearized',
  'it is a kernel of accelerators': """
    dot_product_attention_bwd dot_product_attention_bwd_wrapper dot_product_attention_fp8_bwd
    dot_product_attention_fp8_bwd_wrapper dot_product_attention_fp8_fwd
    dot_product_attention_fp8_fwd_wrapper dot_product_attention_fwd
    dot_product_attention_fwd_wrapper layout_constraint philox2x32 philox4x32 relayout scaled_dot
    scaled_matmul scaled_matmul_wrapper threefry4x32 with_memory_space_constraint""",
  'every element of a matrix depends on every other': 'cholesky_update',
  'rare, and correct at full width': 'linear_call',
}

LIST = """
import gc, json
import jax.image, jax.nn, jax.scipy.linalg, jax.scipy.signal, jax.scipy.special
from jax.extend.core import Primitive
from slim_jax import jaxprs
from slim_jax.channels.rule import RULES
every = {item for item in gc.get_objects() if isinstance(item, Primitive)}
known = {*RULES, *jaxprs.INLINED}
print(json.dumps([len(every & known), sorted({p.name for p in every - known})]))
"""


def test_every_primitive_has_a_rule_or_a_reason():
  ran = subprocess.run([sys.executable, '-c', LIST], capture_output=True, text=True, check=False)
  assert ran.returncode == 0, ran.stderr
  known, others = json.loads(ran.stdout)
  explained = [name for names in REASONS.values() for name in names.split()]
  assert len(explained) == len(set(explained))
  assert sorted(set(others) - set(explained)) == []
  assert known > 180
