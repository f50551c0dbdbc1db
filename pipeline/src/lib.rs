//! Conversations to packed Arrow rows.
