//! Which of many equal rounds a version takes.

/// Those of `all` whose turn it is, with their numbers: versions up to 16 take the first, the third and so on, later
/// ones the others, so that CI sees all of them between two versions. `FORESHARD_LONG=1` takes all.
pub fn in_turn<T>(all: &[T]) -> impl Iterator<Item = (usize, &T)> {
    let long = std::env::var_os("FORESHARD_LONG").is_some();
    let version = std::env::var("FORESHARD_PG").ok().and_then(|version| version.parse().ok()).unwrap_or(15);
    let turn = usize::from(version > 16);
    all.iter().enumerate().filter(move |(number, _)| long || number % 2 == turn)
}
