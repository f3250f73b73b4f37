#include "moe/files/atomic_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>

#include "testing/temp_dir.h"

namespace moe {
namespace {

// Writes beyond `bytes` fail inside this block, as on a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_;
  void (*handler_)(int);
};

size_t NumFiles(const test::TempDir& folder) {
  return static_cast<size_t>(
      std::distance(std::filesystem::directory_iterator(folder.path().string()), std::filesystem::directory_iterator()));
}

TEST(AtomicFile, AppearsOnCommitAndNotBefore) {
  const test::TempDir folder;
  const std::string path = folder / "a";
  auto file = AtomicFile::Create(path);
  ASSERT_TRUE(file) << file.error().Message();
  ASSERT_TRUE(file->Write("hello ", 6));
  ASSERT_TRUE(file->Write("world", 5));
  ASSERT_TRUE(file->WriteAt(0, "J", 1));
  EXPECT_FALSE(std::filesystem::exists(path));
  ASSERT_TRUE(file->Commit());
  EXPECT_EQ(ReadFile(path).value(), "Jello world");
  EXPECT_EQ(NumFiles(folder), 1u);
}

TEST(AtomicFile, ReplacesAndReadsBackAnyBytes) {
  const test::TempDir folder;
  const std::string path = folder / "a";
  for (const std::string& contents :
       {std::string("first"), std::string(), std::string("\0\xff\n", 3), std::string(100'000, 'x')}) {
    ASSERT_TRUE(WriteFileAtomically(path, contents));
    EXPECT_EQ(ReadFile(path).value(), contents);
    const auto mapped = MappedFile::Open(path);
    ASSERT_TRUE(mapped);
    ASSERT_EQ(mapped->bytes().size(), contents.size());
    EXPECT_TRUE(std::equal(contents.begin(), contents.end(), reinterpret_cast<const char*>(mapped->bytes().data())));
  }
}

TEST(AtomicFile, GivenUpLeavesTheOldFileAndNothingElse) {
  const test::TempDir folder;
  const std::string path = folder / "a";
  ASSERT_TRUE(WriteFileAtomically(path, "old"));
  {
    auto file = AtomicFile::Create(path);
    ASSERT_TRUE(file && file->Write("new", 3));
    AtomicFile moved = std::move(*file);
    EXPECT_EQ(NumFiles(folder), 2u);
  }
  EXPECT_EQ(ReadFile(path).value(), "old");
  EXPECT_EQ(NumFiles(folder), 1u);
}

TEST(AtomicFile, FullDiskIsOneLineAndKeepsTheOldFile) {
  const test::TempDir folder;
  const std::string path = folder / "a";
  ASSERT_TRUE(WriteFileAtomically(path, "old"));
  {
    const FileSizeLimit limit(1000);
    const Status status = WriteFileAtomically(path, std::string(1001, 'x'));
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().Message(), "[" + path + "] cannot write: File too large");
  }
  EXPECT_EQ(ReadFile(path).value(), "old");
  EXPECT_EQ(NumFiles(folder), 1u);
  ASSERT_TRUE(WriteFileAtomically(path, std::string(1001, 'x')));  // room again: nothing stands in the way
}

TEST(AtomicFile, TakesOverWhatAKilledWriterLeft) {
  const test::TempDir folder;
  { ASSERT_TRUE(WriteFileAtomically(folder / "a.tmp", std::string(5000, 'z'))); }
  ASSERT_TRUE(WriteFileAtomically(folder / "a", "short"));
  EXPECT_EQ(ReadFile(folder / "a").value(), "short");
  EXPECT_EQ(NumFiles(folder), 1u);
}

TEST(AtomicFile, RefusesASecondWriter) {
  const test::TempDir folder;
  auto first = AtomicFile::Create(folder / "a");
  ASSERT_TRUE(first && first->Write("first", 5));
  const auto second = AtomicFile::Create(folder / "a");
  ASSERT_FALSE(second);
  EXPECT_NE(second.error().what.find("another process is writing it"), std::string::npos);
  ASSERT_TRUE(first->Commit());
  EXPECT_EQ(ReadFile(folder / "a").value(), "first");
}

TEST(AtomicFile, ErrorsNameThePath) {
  const test::TempDir folder;
  const auto in_nowhere = AtomicFile::Create(folder / "no/such/folder");
  ASSERT_FALSE(in_nowhere);
  EXPECT_EQ(in_nowhere.error().Message(), "[" + (folder / "no/such/folder") + "] cannot create: No such file or directory");
  const auto onto_folder = AtomicFile::Create(folder.path().string());
  ASSERT_FALSE(onto_folder);
  EXPECT_EQ(onto_folder.error().Message(), "[" + folder.path().string() + "] cannot write: Is a directory");
  EXPECT_EQ(ReadFile(folder / "none").error().Message(), "[" + (folder / "none") + "] cannot open: No such file or directory");
  EXPECT_EQ(ReadFile(folder.path().string()).error().Message(), "[" + folder.path().string() + "] cannot read: Is a directory");
  EXPECT_EQ(MappedFile::Open(folder.path().string()).error().Message(),
            "[" + folder.path().string() + "] cannot read: Is a directory");
  EXPECT_FALSE(MappedFile::Open("/dev/null"));
}

TEST(AtomicFile, AFolderWithoutWritePermissionIsRefused) {
  if (geteuid() == 0) GTEST_SKIP() << "root may write everywhere";
  const test::TempDir folder;
  ASSERT_EQ(chmod(folder.path().string().c_str(), 0555), 0);
  const auto file = AtomicFile::Create(folder / "a");
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().Message(), "[" + (folder / "a") + "] cannot create: Permission denied");
}

TEST(ReadFile, ReadsPipes) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  ASSERT_EQ(write(ends[1], "through a pipe", 14), 14);
  close(ends[1]);
  EXPECT_EQ(ReadFile("/dev/fd/" + std::to_string(ends[0])).value(), "through a pipe");
  close(ends[0]);
}

}  // namespace
}  // namespace moe
