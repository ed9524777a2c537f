from verl_mtp_plugin.hookspecs import hookimpl
@hookimpl
def verl_mtp_patches(environment):
    from verl_mtp_plugin.rollout.sglang import hooks
    out=list(hooks.PATCHES)
    try:
        from verl_mtp_plugin.rollout import manager; out+=manager.PATCHES
    except ImportError as e: print('no manager',e)
    return out
