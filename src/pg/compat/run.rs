//! How versions run and walk plans. The originals are called through raw externs, because pgrx's guard would lose
//! parts of a user's error.

use pgrx::pg_sys;

mod raw {
    use pgrx::pg_sys;
    // SAFETY: declarations follow the server headers of 15 to 18.
    unsafe extern "C-unwind" {
        #[cfg(feature = "pg15")]
        pub fn expression_tree_walker(
            node: *mut pg_sys::Node,
            walker: unsafe extern "C-unwind" fn(*mut pg_sys::Node, *mut std::ffi::c_void) -> bool,
            context: *mut std::ffi::c_void,
        ) -> bool;
        #[cfg(not(feature = "pg15"))]
        pub fn expression_tree_walker_impl(
            node: *mut pg_sys::Node,
            walker: unsafe extern "C-unwind" fn(*mut pg_sys::Node, *mut std::ffi::c_void) -> bool,
            context: *mut std::ffi::c_void,
        ) -> bool;
        #[cfg(not(feature = "pg18"))]
        pub fn standard_ExecutorRun(
            query: *mut pg_sys::QueryDesc,
            direction: pg_sys::ScanDirection::Type,
            count: u64,
            execute_once: bool,
        );
        #[cfg(feature = "pg18")]
        pub fn standard_ExecutorRun(
            query: *mut pg_sys::QueryDesc,
            direction: pg_sys::ScanDirection::Type,
            count: u64,
        );
        #[cfg(feature = "pg15")]
        pub fn planstate_tree_walker(
            state: *mut pg_sys::PlanState,
            walker: unsafe extern "C-unwind" fn(*mut pg_sys::PlanState, *mut std::ffi::c_void) -> bool,
            context: *mut std::ffi::c_void,
        ) -> bool;
        #[cfg(not(feature = "pg15"))]
        pub fn planstate_tree_walker_impl(
            state: *mut pg_sys::PlanState,
            walker: unsafe extern "C-unwind" fn(*mut pg_sys::PlanState, *mut std::ffi::c_void) -> bool,
            context: *mut std::ffi::c_void,
        ) -> bool;
    }
}

/// What ExecutorRun is called with besides the query.
pub struct RunArguments {
    direction: pg_sys::ScanDirection::Type,
    count: u64,
    #[cfg(not(feature = "pg18"))]
    execute_once: bool,
}

/// Our part of an ExecutorRun hook.
// SAFETY: called with a valid query only.
pub type RunHook = unsafe fn(*mut pg_sys::QueryDesc, &RunArguments);

static mut RUN: Option<RunHook> = None;
static mut PREVIOUS_RUN: pg_sys::ExecutorRun_hook_type = None;

/// Installs an ExecutorRun hook that calls `run`, which must call [`run_next`].
///
/// # Safety
/// Only while the postmaster preloads libraries.
pub unsafe fn register_run_hook(run: RunHook) {
    // SAFETY: as promised by the caller.
    unsafe {
        RUN = Some(run);
        PREVIOUS_RUN = pg_sys::ExecutorRun_hook;
        pg_sys::ExecutorRun_hook = Some(executor_run);
    }
}

#[cfg(not(feature = "pg18"))]
// SAFETY: called by PostgreSQL with a valid query.
unsafe extern "C-unwind" fn executor_run(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
    execute_once: bool,
) {
    let arguments = RunArguments { direction, count, execute_once };
    // SAFETY: RUN is set before the hook is.
    unsafe {
        if let Some(run) = RUN {
            run(query, &arguments);
        }
    }
}

#[cfg(feature = "pg18")]
// SAFETY: called by PostgreSQL with a valid query.
unsafe extern "C-unwind" fn executor_run(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
) {
    let arguments = RunArguments { direction, count };
    // SAFETY: RUN is set before the hook is.
    unsafe {
        if let Some(run) = RUN {
            run(query, &arguments);
        }
    }
}

/// Runs the query as it would be without us.
///
/// # Safety
/// From a [`RunHook`], with its arguments. Raises like the original.
pub unsafe fn run_next(query: *mut pg_sys::QueryDesc, arguments: &RunArguments) {
    let RunArguments { direction, count, .. } = *arguments;
    // SAFETY: as promised by the caller.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        match PREVIOUS_RUN {
            Some(previous) => previous(query, direction, count, arguments.execute_once),
            None => raw::standard_ExecutorRun(query, direction, count, arguments.execute_once),
        }
        #[cfg(feature = "pg18")]
        match PREVIOUS_RUN {
            Some(previous) => previous(query, direction, count),
            None => raw::standard_ExecutorRun(query, direction, count),
        }
    }
}

/// Calls `walker` for each child of a plan state (children of Append and sub-plans included) until it
/// returns true.
///
/// # Safety
/// `state` must be an initialised plan state.
pub unsafe fn walk_plan_state(
    state: *mut pg_sys::PlanState,
    // SAFETY: called with children of `state` and with `context`.
    walker: unsafe extern "C-unwind" fn(*mut pg_sys::PlanState, *mut std::ffi::c_void) -> bool,
    context: *mut std::ffi::c_void,
) -> bool {
    // SAFETY: as promised by the caller.
    unsafe {
        #[cfg(feature = "pg15")]
        return raw::planstate_tree_walker(state, walker, context);
        #[cfg(not(feature = "pg15"))]
        return raw::planstate_tree_walker_impl(state, walker, context);
    }
}

/// Where versions keep what an Append leaves out.
#[cfg(not(feature = "pg18"))]
macro_rules! prunes {
    ($node:expr) => {
        !$node.part_prune_info.is_null()
    };
}
/// Where versions keep what an Append leaves out.
#[cfg(feature = "pg18")]
macro_rules! prunes {
    ($node:expr) => {
        $node.part_prune_index >= 0
    };
}

/// Whether a node may leave out some of its children when it begins or while it runs.
///
/// # Safety
/// `plan` must be a plan node.
pub unsafe fn may_prune(plan: *mut pg_sys::Plan) -> bool {
    // SAFETY: each node is read as the struct its tag names.
    unsafe {
        match (*plan).type_ {
            pg_sys::NodeTag::T_Append => prunes!((*plan.cast::<pg_sys::Append>())),
            pg_sys::NodeTag::T_MergeAppend => prunes!((*plan.cast::<pg_sys::MergeAppend>())),
            _ => false,
        }
    }
}

/// Whether an expression asks for a value that another plan node gives.
///
/// # Safety
/// `node` must be null or a planned expression; `context` is passed on.
pub unsafe extern "C-unwind" fn asks_other_nodes(
    node: *mut pg_sys::Node,
    context: *mut std::ffi::c_void,
) -> bool {
    // SAFETY: as promised by the caller; each node is read as the struct its tag names.
    unsafe {
        if node.is_null() {
            return false;
        }
        match (*node).type_ {
            pg_sys::NodeTag::T_Param => {
                return (*node.cast::<pg_sys::Param>()).paramkind != pg_sys::ParamKind::PARAM_EXTERN;
            }
            pg_sys::NodeTag::T_Var | pg_sys::NodeTag::T_SubPlan | pg_sys::NodeTag::T_AlternativeSubPlan => {
                return true;
            }
            _ => {}
        }
        #[cfg(feature = "pg15")]
        return raw::expression_tree_walker(node, asks_other_nodes, context);
        #[cfg(not(feature = "pg15"))]
        return raw::expression_tree_walker_impl(node, asks_other_nodes, context);
    }
}
