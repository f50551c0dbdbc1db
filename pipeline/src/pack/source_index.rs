//! Where a row's source stands in the manifest, found without looking through all of them.

use crate::input::source::Input;
use dlm_datasets::manifest::Source;
use std::collections::{HashMap, HashSet};

/// The sources of a manifest by name and category.
#[derive(Default)]
pub(crate) struct SourceIndex {
    of_name: HashMap<String, HashMap<Option<String>, usize>>,
    /// The licences of each source.
    licences: Vec<HashSet<String>>,
}

impl SourceIndex {
    /// Index in `sources`, which gets a new source if this category or licence is new.
    pub(crate) fn find(
        &mut self,
        sources: &mut Vec<Source>,
        input: &Input,
        category: &Option<String>,
        licence: &Option<String>,
    ) -> usize {
        // A resumed run begins with the sources of its state.
        for s in sources.iter().skip(self.licences.len()) {
            self.add(s);
        }
        let known = self.of_name.get(&input.source).and_then(|of| of.get(category));
        let k = known.copied().unwrap_or_else(|| {
            let (dataset, revision) = input.origin.clone().unzip();
            let source = Source {
                name: input.source.clone(),
                category: category.clone(),
                dataset,
                revision,
                licences: input.licence.iter().cloned().collect(),
                ..Default::default()
            };
            self.add(&source);
            sources.push(source);
            sources.len() - 1
        });
        if let Some(l) = licence
            && !self.licences[k].contains(l)
        {
            self.licences[k].insert(l.clone());
            sources[k].licences.push(l.clone());
        }
        k
    }

    fn add(&mut self, source: &Source) {
        let k = self.licences.len();
        self.licences.push(source.licences.iter().cloned().collect());
        let of = self.of_name.entry(source.name.clone()).or_default();
        of.entry(source.category.clone()).or_insert(k);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::files::LocalFile;
    use std::path::PathBuf;

    /// Each source is taken up once, also those that a resumed run begins with, and found again
    /// without a look at the others: 120,000 calls would otherwise compare billions of names.
    #[test]
    fn many_categories() {
        let input = Input::from(LocalFile { path: PathBuf::new(), name: "a".into(), bytes: 0 });
        let (mut index, mut sources) = (SourceIndex::default(), Vec::new());
        let category = |i: usize| Some(format!("category {i}"));
        for i in 0..60_000 {
            let licence = Some(format!("licence {}", i % 3));
            assert_eq!(index.find(&mut sources, &input, &category(i), &licence), i);
            assert_eq!(index.find(&mut sources, &input, &category(0), &category(i)), 0);
        }
        assert_eq!((sources.len(), sources[0].licences.len()), (60_000, 60_001));
        let mut index = SourceIndex::default();
        assert_eq!(index.find(&mut sources, &input, &category(59_999), &None), 59_999);
        assert_eq!(index.find(&mut sources, &input, &None, &None), 60_000);
    }
}
