//! Which roles carry loss.
//!
//! In: `assistant`, `user`, `system`, `tool` and `all`, or several of them separated by commas.
//! Out: [`TrainedRoles`], which is written in the same form.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The roles whose turns carry loss; the assistant alone unless named otherwise.
///
/// ```
/// let roles: dlm_prep::TrainedRoles = "assistant, tool".parse().unwrap();
/// assert_eq!(roles.to_string(), "assistant,tool");
/// assert!("teacher".parse::<dlm_prep::TrainedRoles>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Listed", into = "String")]
pub struct TrainedRoles {
    /// In the order of [`NAMES`].
    included: [bool; 4],
}

const NAMES: [&str; 4] = ["assistant", "user", "system", "tool"];

/// The place in [`NAMES`] of a role in a chat template's terms.
fn place(role: &str) -> Option<usize> {
    let name = match role {
        "developer" => "system",
        "function" | "ipython" => "tool",
        other => other,
    };
    NAMES.iter().position(|n| *n == name)
}

impl Default for TrainedRoles {
    fn default() -> Self {
        TrainedRoles { included: [true, false, false, false] }
    }
}

impl TrainedRoles {
    /// Every role.
    pub const ALL: TrainedRoles = TrainedRoles { included: [true; 4] };

    /// Whether the turns of the assistant carry loss.
    pub(crate) fn assistant(&self) -> bool {
        self.included[0]
    }

    /// Whether the turns of another role carry loss.
    pub(crate) fn beyond_assistant(&self) -> bool {
        self.included[1..].contains(&true)
    }

    /// Whether the turns of a role carry loss. `system` stands for `developer` too, `tool` for
    /// `function` and `ipython`.
    pub fn includes(&self, role: &str) -> bool {
        place(role).is_some_and(|n| self.included[n])
    }
}

impl FromStr for TrainedRoles {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut included = [false; 4];
        for name in text.split(',').map(str::trim).filter(|n| !n.is_empty()) {
            match (name, place(name)) {
                ("all", _) => included = [true; 4],
                (_, Some(n)) => included[n] = true,
                _ => {
                    return Err(format!(
                        "no role {name:?}; there are assistant, user, system, tool and all"
                    ));
                }
            }
        }
        match included.contains(&true) {
            true => Ok(TrainedRoles { included }),
            false => Err("names no role; for example assistant,tool".to_string()),
        }
    }
}

impl fmt::Display for TrainedRoles {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if *self == TrainedRoles::ALL {
            return f.write_str("all");
        }
        let names = NAMES.iter().zip(self.included).filter(|(_, on)| *on).map(|(n, _)| *n);
        f.write_str(&names.collect::<Vec<_>>().join(","))
    }
}

/// Roles as a recipe names them: a text or a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Listed {
    Text(String),
    List(Vec<String>),
}

impl TryFrom<Listed> for TrainedRoles {
    type Error = String;

    fn try_from(listed: Listed) -> Result<Self, String> {
        match listed {
            Listed::Text(text) => text.parse(),
            Listed::List(names) => names.join(",").parse(),
        }
    }
}

impl From<TrainedRoles> for String {
    fn from(roles: TrainedRoles) -> String {
        roles.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_lists() {
        let read =
            |json: &str| serde_json::from_str::<TrainedRoles>(json).map_err(|e| e.to_string());
        assert_eq!(read("\"assistant\""), Ok(TrainedRoles::default()));
        assert_eq!(read("[\"all\"]"), Ok(TrainedRoles::ALL));
        let roles = read("[\"tool\", \"user\"]").unwrap();
        assert_eq!(serde_json::to_string(&roles).unwrap(), "\"user,tool\"");
        assert!(roles.includes("ipython") && !roles.includes("developer") && !roles.assistant());
        assert!(read("\"\"").unwrap_err().contains("names no role"));
        assert!(read("\"gpt\"").unwrap_err().contains("\"gpt\""));
    }
}
