//! A container's root file system: an overlay of the image's layers, described
//! as containerd describes mounts.
//! <https://docs.kernel.org/filesystems/overlayfs.html>

use std::path::{Path, PathBuf};

use super::container::ContainerDirectory;

/// What mount(2) takes of options: a page with its closing zero byte.
const MAX_OPTIONS: usize = 4095;

#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    #[error(
        "the image's {layers} layers need {length} bytes of mount options, the kernel takes \
         {MAX_OPTIONS}; use a shorter data_dir in /etc/lazaret/config.toml"
    )]
    Options { layers: usize, length: usize },
    #[error("the path {} contains a character that overlayfs's mount options cannot have", .0.display())]
    Path(PathBuf),
}

/// The options of the overlay mount, one each.
pub fn overlay_options(
    lower: &[PathBuf],
    container: &ContainerDirectory,
) -> Result<Vec<String>, RootfsError> {
    let lower_text = lower
        .iter()
        .map(|path| text(path))
        .collect::<Result<Vec<_>, _>>()?;
    let options = vec![
        // No NFS export and no file handles are needed, and with an index two
        // containers could not share their layers' inodes.
        "index=off".to_owned(),
        format!("lowerdir={}", lower_text.join(":")),
        format!("upperdir={}", text(&container.upper())?),
        format!("workdir={}", text(&container.work())?),
    ];
    let length = options.iter().map(|option| option.len() + 1).sum::<usize>() - 1;
    if length > MAX_OPTIONS {
        return Err(RootfsError::Options {
            layers: lower.len(),
            length,
        });
    }
    Ok(options)
}

fn text(path: &Path) -> Result<String, RootfsError> {
    match path.to_str() {
        Some(text) if !text.contains([':', ',', '\\']) => Ok(text.to_owned()),
        _ => Err(RootfsError::Path(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container() -> ContainerDirectory {
        ContainerDirectory::new(format!("/var/lib/lazaret/containers/{}", "a".repeat(64)).into())
    }

    fn lower(count: usize) -> Vec<PathBuf> {
        (0..count)
            .map(|link| format!("/var/lib/lazaret/l/{}", 99_000 + link).into())
            .collect()
    }

    #[test]
    fn the_topmost_layer_comes_first() {
        let options = overlay_options(&lower(2), &container()).unwrap();
        assert_eq!(
            options[1],
            "lowerdir=/var/lib/lazaret/l/99000:/var/lib/lazaret/l/99001"
        );
        assert!(options[2].starts_with("upperdir=/var/lib/lazaret/containers/aaa"));
    }

    #[test]
    fn as_many_layers_as_an_image_may_have_fit() {
        overlay_options(&lower(crate::image::layer::MAX_LAYERS), &container()).unwrap();
        let error = overlay_options(&lower(200), &container()).unwrap_err();
        assert!(matches!(error, RootfsError::Options { layers: 200, .. }));
    }

    #[test]
    fn characters_of_the_option_syntax_are_refused() {
        let odd = ContainerDirectory::new("/var/lib/a:b".into());
        assert!(matches!(
            overlay_options(&lower(1), &odd),
            Err(RootfsError::Path(_))
        ));
    }
}
