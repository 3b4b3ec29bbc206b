"""What a build finds when it starts: another build, files that are gone, cut or changed, and folders it may not use."""


from build_fixtures import flags

from pipeline.folders import Folders


def test_a_build_that_is_refused_leaves_the_folders_of_the_one_at_work(raw, tmp_path, sample_model, run_build):
    folders = Folders(tmp_path / "out", tmp_path / "out/work")
    with folders.locked():
        (tmp_path / "out/work/ingest/web-00000.1.tmp").mkdir(parents=True)
        outcome = run_build(flags(raw, tmp_path / "out", sample_model))
        assert "another build is at work" in outcome.error
        assert (tmp_path / "out/work/ingest/web-00000.1.tmp").is_dir()
    assert not (tmp_path / "out").exists()
