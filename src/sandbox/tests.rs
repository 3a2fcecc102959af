//! What the whole of it refuses is tested in processes of their own: it cannot be taken back.

use super::*;

#[test]
fn every_part_has_a_label_of_its_own() {
    let labels: std::collections::BTreeSet<&str> = Part::EACH.into_iter().map(Part::label).collect();
    assert_eq!(labels.len(), Part::EACH.len());
}
