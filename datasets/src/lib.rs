//! The packed dataset format shared by dlm-prep and dlm-train.
