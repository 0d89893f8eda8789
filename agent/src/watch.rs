//! The border between watch streams and the synchronous indexes that they feed.

/// What a watch of one resource says, in the order in which the server said it.
///
/// A relist is `Restart`, any number of `InitApply`, then `InitDone`; an index must end up equal to a fresh list,
/// whatever came before.
#[derive(Clone, Debug)]
pub enum WatchEvent<K> {
    /// A list begins; objects that it does not name are gone when it ends.
    Restart,
    /// An object of the running list.
    InitApply(K),
    /// The list is complete.
    InitDone,
    /// An object was added or changed.
    Apply(K),
    /// An object was deleted; this is its last state.
    Delete(K),
}

/// A synchronous consumer of one resource. It must not block.
pub trait WatchSink<K>: Send + 'static {
    /// Takes in one event.
    fn handle(&mut self, event: WatchEvent<K>);
}
