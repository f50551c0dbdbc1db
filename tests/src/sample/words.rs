//! Word lists of the sample: short common words, so that a vocabulary of about a thousand ids holds
//! most of them as one token.

/// First names.
pub const FIRST: &[&str] = &[
    "Anna", "Ben", "Carla", "David", "Elena", "Frank", "Grace", "Hugo", "Irene", "Jonas", "Karin",
    "Leo", "Maria", "Nina", "Oscar", "Paula", "Ravi", "Sara", "Tom", "Vera",
];
/// Family names.
pub const LAST: &[&str] = &[
    "Adler", "Berg", "Costa", "Dunn", "Evans", "Fox", "Grant", "Hall", "Ito", "Jones", "Klein",
    "Lopez", "Marsh", "Novak", "Olsen", "Price", "Reed", "Stone", "Turner", "West",
];
/// Cities.
pub const CITY: &[&str] = &[
    "Athens", "Berlin", "Cairo", "Delhi", "Geneva", "Lima", "Madrid", "Oslo", "Paris", "Quito",
    "Rome", "Seoul", "Tokyo", "Turin", "Vienna", "Zurich",
];
/// Occupations.
pub const JOB: &[&str] = &[
    "actor",
    "baker",
    "carpenter",
    "doctor",
    "driver",
    "editor",
    "farmer",
    "judge",
    "lawyer",
    "nurse",
    "painter",
    "pilot",
    "singer",
    "tailor",
    "teacher",
    "writer",
];
/// Articles that can be ordered.
pub const ITEM: &[&str] = &[
    "bag", "bench", "bowl", "chair", "clock", "coat", "cup", "desk", "hat", "lamp", "mirror",
    "pen", "rug", "scarf", "shelf", "table",
];
/// Colours.
pub const COLOR: &[&str] = &[
    "black", "blue", "brown", "gold", "green", "grey", "orange", "pink", "red", "silver", "white",
    "yellow",
];
/// Order states.
pub const STATUS: &[&str] = &["open", "paid", "packed", "sent", "lost", "returned"];
/// Meeting subjects.
pub const TOPIC: &[&str] = &[
    "audit", "budget", "design", "garden", "hiring", "launch", "music", "prices", "review",
    "safety", "sales", "school", "strategy", "travel",
];
/// Days of the week.
pub const DAY: &[&str] =
    &["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
/// Rooms.
pub const ROOM: &[&str] = &["north", "south", "east", "west", "upper", "lower", "main", "small"];
/// Kinds of animals.
pub const KIND: &[&str] =
    &["cat", "dog", "duck", "goat", "hen", "horse", "mouse", "pony", "rabbit", "sheep"];
/// Names of animals.
pub const PET: &[&str] = &[
    "Ace", "Bella", "Coco", "Daisy", "Fluffy", "Ginger", "Lucky", "Max", "Milo", "Nala", "Rocky",
    "Rusty", "Shadow", "Teddy",
];
